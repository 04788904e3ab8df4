"""What if: workloads, and what a deployment makes of them."""
