"""Every test sees eight virtual CPU devices, set before JAX makes its backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of small programs and run each a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax

# A loaded machine is no failure.
hypothesis.settings.register_profile("epdjax", deadline=None)
hypothesis.settings.load_profile("epdjax")
jax.config.update("jax_num_cpu_devices", 8)
