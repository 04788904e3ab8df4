"""How an instance attends: a kernel for each stage it performs, chosen by rules when the instance is built."""
