"""File formats: a mapped file or a folder in; tensors that look into it, and the values beside them, out.

`pytorch_zip` (on `stored_zip`) and `pytorch_legacy` read files of torch.save, `safetensors_file` safetensors;
`diffusers_folder` finds the files of a UNet in a folder, `not_checkpoints` describes files of other kinds.
"""
