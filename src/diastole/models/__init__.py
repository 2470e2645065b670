"""One file per architecture, named after Hugging Face's ``model_type``, offering ``build(load, config, context)``."""
