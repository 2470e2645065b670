"""Parts that models are composed of, on the operators of ``kernels``. Arrays are float32 numpy."""
