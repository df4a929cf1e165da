"""One network in a file of its own: autoencoders and ControlNets."""
