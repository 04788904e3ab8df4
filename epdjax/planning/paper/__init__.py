"""The tables of the EPD paper (arXiv 2501.05460) beside what this project makes of them."""
