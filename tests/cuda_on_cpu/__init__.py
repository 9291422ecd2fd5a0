"""The .cu files, compiled by the host compiler and run on the CPU (README.md)."""
