"""What an author writes: components, contracts, roles, kernels. Light."""
