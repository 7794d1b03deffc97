"""Policy files: what they mean, and every way in which they can be wrong."""
