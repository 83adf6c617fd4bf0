"""Make the perturbation: methods, the optimiser, the transforms and the edit masks it is optimised over."""
