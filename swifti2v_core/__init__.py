"""SwiftI2V in pure torch: segment plan, segment loop, hybrid reference, schedules, attention.

Nothing here imports ComfyUI; ``nodes/`` turns sockets into the tensors and callables used here.
"""

__version__ = "0.1.0"
