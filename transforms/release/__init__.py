"""Release models: what is decided about a window as a whole, when it closes. One pure decide-and-apply file each."""
