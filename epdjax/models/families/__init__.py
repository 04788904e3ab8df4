"""The families of models, a folder each: model (config, encoder), keys (tensor names), processor (media, prompts)."""
