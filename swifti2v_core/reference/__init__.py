"""The hybrid reference that Stage II follows: upsampled motion, the photo, and keyframes."""
