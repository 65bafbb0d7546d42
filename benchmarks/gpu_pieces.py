"""The pieces of gpu_all.py: each a generator of rows {name, value, unit, ...}, in the order of their importance."""

import math
import shutil
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from gpu_data import end_to_end, filter_bank  # noqa: F401  pieces as those here are
from gpu_measure import copy_tb_per_s, matmul_tflops, peak_memory_gb, seconds_per_step, synchronize
from gpu_sizes import COMPILED, flops_of, objective_of, recipe_for
from gpu_worker import Row, Settings
from harness import interleaved, result
from torch._dynamo.utils import counters
from training_step import EAGER, Step, ours, reference

from kdctool.recipe.machine import Parallel
from kdctool.train.flops import peak_tflops
from kdctool.train.parallel import RECOMPILES, blocks


def machine(s: Settings) -> Iterator[Row]:
    """The two ceilings of the card, and what the vendor says."""
    size = s.pick(8192, 128)
    rates = [matmul_tflops(size, s.device, products=s.pick(20, 2)) for _ in range(5)]
    yield result(f"bf16_matmul_{size}", rates, "TFLOP/s").as_dict()
    yield row("copy", copy_tb_per_s(s.pick(4.0, 0.01), s.device), "TB/s")
    if s.device == "cuda":
        name = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield {"name": "device", "gpu": name, "gpu_memory_gb": round(memory, 1)} | {
            "data_sheet_bf16_tflops": peak_tflops(name), "shm_gb": round(shutil.disk_usage("/dev/shm").free / 2**30, 1),
            "capability": torch.cuda.get_device_capability(0), "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip


def against_reference(s: Settings) -> Iterator[Row]:
    """Ours in bf16, eager and compiled, beside the released step in fp16, interleaved at one batch size."""
    recipe, device = recipe_for(s, "kdc_mae"), torch.device(s.device)
    clips = s.pick(64, 2)
    if s.device == "cuda":  # the reference needs about 1 GB a clip
        memory_gb = torch.cuda.get_device_properties(0).total_memory / 2**30
        clips = min(clips, 2 ** int(math.log2(memory_gb / 2)))
    steps = {"reference_fp16": reference(recipe, clips, device, _half(s))}
    memory = {"reference_fp16": peak_memory_gb(steps["reference_fp16"], steps["reference_fp16"].weights)}
    for name, parallel in (("ours_bf16", EAGER), ("ours_bf16_compiled", COMPILED)):
        start = time.perf_counter()
        try:
            step = ours(recipe, clips, device, "bf16", parallel=parallel)
            memory[name] = peak_memory_gb(step, step.weights)
        except RuntimeError as error:  # dynamo's and inductor's too: the comparison of the others must not go with it
            yield {"name": name, "cannot": f"{type(error).__name__}: {error}"[:500]}
            continue
        steps[name] = step
        yield row(f"{name}_first_two_steps", time.perf_counter() - start, "s")
    yield from measured(s, "kdc_mae", steps, memory)


def batch_sizes(s: Settings) -> Iterator[Row]:
    """KDC-MAE base, eager and compiled, at growing batches until memory ends."""
    yield from grown(s, "kdc_mae", {"eager": (EAGER, s.pick((32, 128, 256), (2, 4)))})
    yield from grown(s, "kdc_mae", {"compiled": (COMPILED, s.pick((128, 256), (2,)))})


def compile_ways(s: Settings) -> Iterator[Row]:
    """Blocks compiled as training does it, where lengths become variable, and anew for every length."""
    recipe, device, clips = recipe_for(s, "kdc_mae"), torch.device(s.device), s.pick(128, 2)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    steps, memory = {}, {}
    for name, dynamic in (("variable_lengths", None), ("fixed_lengths", False)):
        objective = objective_of(s, "kdc_mae")
        for block in blocks(objective):
            block.compile(dynamic=dynamic)
        steps[name] = ours(recipe, clips, device, "bf16", objective)
        start = time.perf_counter()
        memory[name] = peak_memory_gb(steps[name], steps[name].weights)
        yield row(f"{name}_first_two_steps", time.perf_counter() - start, "s")
    yield from measured(s, "kdc_mae", steps, memory)


def cav_mae(s: Settings) -> Iterator[Row]:
    """CAV-MAE base, eager and compiled."""
    sizes = s.pick((256,), (2,))
    yield from grown(s, "cav_mae", {"eager": (EAGER, sizes), "compiled": (COMPILED, sizes)})


def finetuning(s: Settings) -> Iterator[Row]:
    """Classification by both modalities, no token hidden."""
    yield from grown(
        s, "finetune", {"eager": (EAGER, s.pick((48, 128), (2,))), "compiled": (COMPILED, s.pick((128,), (2,)))}
    )


def checkpointed(s: Settings) -> Iterator[Row]:
    """What activation checkpointing saves and costs, compiled."""
    parallel = Parallel(mode="none", compile="on", checkpoint_activations=True)
    yield from grown(s, "kdc_mae", {"checkpointed": (parallel, s.pick((256,), (2,)))})


def agreement(s: Settings) -> Iterator[Row]:
    """The same weights, batches and masks in bf16, fp16 and fp32: how far losses part over some steps."""
    clips, steps = s.pick(16, 2), s.pick(20, 3)
    recipe, device = recipe_for(s, "kdc_mae"), torch.device(s.device)
    losses = {}
    for precision in dict.fromkeys(("fp32", "bf16", _half(s))):
        step = ours(recipe, clips, device, precision)
        losses[precision] = [step() for _ in range(steps)]
        if precision != "fp32":
            apart = [abs(a - b) / abs(b) for a, b in zip(losses[precision], losses["fp32"], strict=True)]
            yield {**row(f"{precision}_loss_apart", max(apart), "relative, largest"), "losses": losses[precision]}
    yield {"name": "fp32_losses", "losses": losses["fp32"]}


def profile(s: Settings) -> Iterator[Row]:
    """The ten operations that take most of the device's time, eager and compiled."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if s.device == "cuda" else [])
    attribute = "self_device_time_total" if s.device == "cuda" else "self_cpu_time_total"
    for name, parallel in (("eager", EAGER), ("compiled", COMPILED)):
        step = ours(recipe_for(s, "kdc_mae"), s.pick(128, 2), torch.device(s.device), "bf16", parallel=parallel)
        seconds_per_step(step, 3)
        with profiler(activities=activities) as found:
            wall = seconds_per_step(step, 2)
        events = sorted(found.key_averages(), key=lambda event: getattr(event, attribute), reverse=True)
        # Kernels carry the device's time themselves; operators would count it a second time.
        cuda = torch.autograd.DeviceType.CUDA
        kernels = [e for e in events if s.device == "cpu" or (e.device_type == cuda and not e.is_user_annotation)]
        total = sum(getattr(event, attribute) for event in kernels) or 1.0
        top = [
            {"kernel": e.key[:120], "share": round(getattr(e, attribute) / total, 4), "calls": e.count}
            for e in kernels[:10]
        ]
        yield {**row(f"{name}_device_busy", total / 2e6 / wall, "share of wall time"), "top_ten": top}


def attention(s: Settings) -> Iterator[Row]:
    """Fused attention by backend at the shapes of the model, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    clips = s.pick(256, 2)
    kinds = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    kinds |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    for name, (tokens, heads, head) in {
        "decoder": (708, 16, 32), "decoder_8_heads": (708, 8, 64), "audio": (128, 12, 64), "video": (49, 12, 64),
    }.items():  # fmt: skip
        shape = (clips, heads, tokens, head)
        q, k, v = (torch.randn(shape, device=s.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        for kind, backend in kinds.items():
            try:
                with sdpa_kernel(backend):
                    seconds = _attention_seconds(q, k, v, s.pick(5, 1))
            except RuntimeError as error:  # a backend that cannot take this shape says so
                yield {"name": f"{name}_{kind}", "cannot": str(error).splitlines()[0][:200]}
                continue
            flops = 14 * clips * heads * tokens**2 * head
            yield row(f"{name}_{kind}", flops / seconds / 1e12, "TFLOP/s")


def optimizers(s: Settings) -> Iterator[Row]:
    """One Adam step over KDC-MAE base's trainable parameters, by implementation."""
    parameters = [torch.nn.Parameter(torch.randn(n, device=s.device)) for n in [s.pick(1_900_000, 1000)] * 100]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    for name, options in (("fused", {"fused": True}), ("foreach", {"foreach": True}), ("loop", {"foreach": False})):
        adam = torch.optim.Adam(parameters, lr=1e-4, **options)
        seconds_per_step(adam.step, 2)
        yield row(name, 1000 * seconds_per_step(adam.step, 5), "ms")
        del adam


def measured(s: Settings, kind: str, steps: dict[str, Step], memory: dict[str, float]) -> Iterator[Row]:
    """Rows for steps that are warm or nearly so: clips/s of interleaved runs, TFLOP/s, peak memory, last loss."""
    flops = flops_of(s, kind)
    for step in steps.values():
        seconds_per_step(step, s.pick(2, 1))
    count = s.pick(3, 1)
    runs = interleaved({name: (lambda t=t: seconds_per_step(t, count)) for name, t in steps.items()}, s.pick(5, 2))
    for name, step in steps.items():
        yield result(name, [step.clips / seconds for seconds in runs[name]], "clips/s").as_dict() | {
            "batch": step.clips,
            "tflops": float(f"{flops * step.clips / statistics.median(runs[name]) / 1e12:.5g}"),
            "gflop_per_clip": round(flops / 1e9, 3),
            "peak_memory_gb": round(memory[name], 3),
            "loss": step.losses[-1],
            "graphs_compiled": counters["stats"]["unique_graphs"],
        }


def grown(s: Settings, kind: str, ways: dict[str, tuple[Parallel, tuple[int, ...]]]) -> Iterator[Row]:
    """Clips per second at the batch sizes of each way; a size that does not fit ends it."""
    recipe, device = recipe_for(s, kind), torch.device(s.device)
    for name, (parallel, sizes) in ways.items():
        objective = objective_of(s, kind)
        for clips in sizes:
            step = None  # What did not fit leaves first.
            try:
                step = ours(recipe, clips, device, "bf16", objective, parallel)
                memory = peak_memory_gb(step, step.weights)
                yield from measured(s, kind, {f"{name}_{clips}": step}, {f"{name}_{clips}": memory})
            except torch.OutOfMemoryError:
                yield {"name": f"{name}_{clips}", "cannot": "out of memory"}
                break
            parallel = EAGER  # the blocks of this objective are wrapped already


def _half(s: Settings) -> str:
    """What the release trains in; a CPU multiplies fp16 far too slowly."""
    return "fp16" if s.device == "cuda" else "fp32"


def row(name: str, value: float, unit: str) -> Row:
    """A row of a single run."""
    return result(name, [value], unit).as_dict()


def _attention_seconds(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: int) -> float:
    def both() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    both()
    synchronize()
    return seconds_per_step(both, runs)
