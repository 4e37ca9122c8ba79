"""The networks: Wan's transformer on windows, the autoencoders, their weight formats and sampling."""
