"""The one table of reasons: why an input is not data, and what a clip that was kept is flagged for."""

REASONS: dict[str, str] = {
    "missing": "the list names a file that is not there, or it vanished",
    "empty": "the file has 0 bytes",
    "is_folder": "a folder with the name of a media file",
    "is_fifo": "a named pipe with the name of a media file; it is never opened",
    "is_special": "a device or socket with the name of a media file; it is never opened",
    "dangling_link": "a symbolic link to nothing",
    "symlink_loop": "a symbolic link that leads back to itself",
    "no_permission": "the file, or the folder, may not be read",
    "io_error": "the disk or the network failed while reading, twice",
    "changed": "the file changed while it was being read, twice",
    "unreadable": "no media file: its container is unknown or its header is damaged",
    "container_not_allowed": "a playlist, a script or a container that is not on the list of allowed ones",
    "truncated": "the file ends before its own header says",
    "no_video": "no video stream (a cover picture is not a video)",
    "no_audio": "no audio stream",
    "no_decoder": "the codec of the chosen stream has no decoder here",
    "too_short": "less sound or picture than half of the window, or less than 25 ms",
    "outside": "the segment starts after the end of the video",
    "too_large": "more pixels, streams, packets or memory than the limits allow",
    "no_such_stream": "it has no stream of the number that --video-stream or --audio-stream names",
    "decode_error": "the content is damaged: a frame or the sound could not be decoded",
    "decoder_crash": "the decoder died on this file, and so did the other one",
    "timeout": "decoding took longer than the limit",
    "unexpected_error": "an error inside kdctool; `detail` says which: please report it",
}
"""Reason of a manifest row with status `quarantined`, and what it means."""

FLAGS: dict[str, str] = {
    "silent": "the sound stays below -60 dB of full scale",
    "static": "the frames do not differ",
    "short_audio": "the sound ends early by more than a tenth of the window; the rest is zeros",
}
"""Reason of a row with status `flagged`: the clip is kept. Several are joined by `+`, in this order."""


class Rejected(Exception):
    """An input that is not data, with its reason from the table and the words of whoever noticed."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"'{reason}' is not in the table of reasons")
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(detail.split())[:300]
