"""The questions an audit asks, one file each; whatever stands here is asked."""
