"""The only importer of ComfyUI: one file per thing of ComfyUI's."""
