"""Every test sees eight virtual CPU devices, set before JAX makes its backend, and compiles what no other test has."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of small programs and run each a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax

# A loaded machine is no failure.
hypothesis.settings.register_profile("epdjax", deadline=None)
hypothesis.settings.load_profile("epdjax")
jax.config.update("jax_num_cpu_devices", 8)

# On disk, so that all workers and the next run share it: most tests deploy one of a few tiny models.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / "build" / "compiled-for-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
