"""What people look at: one HTML file that tells what a run learned, how good it is, and what that was measured on."""
