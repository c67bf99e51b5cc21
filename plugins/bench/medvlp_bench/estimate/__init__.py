"""What a training run will cost, before it starts: parameters, operations, memory and time. Nothing is trained for it.

``cards`` knows the GPUs, ``trace`` follows one step with tensors that hold no numbers, ``cost`` makes memory and time of it,
``report`` writes it down, ``check`` compares the count with a step that really runs.
"""
