"""Calibrations: one file per technique that needs one, named as the technique is (``-`` becomes ``_``).

It has ``TOKENS``, how many of text it looks at unless told otherwise, ``CONTEXT``, the tokens of its longest stream,
and ``measure(job) -> tensors``. ``diastole calibrate`` finds it by name and keeps what it measures.
"""
