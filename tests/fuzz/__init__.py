"""What others wrote, damaged at random, and whether whatever opens it raises what its docstring declares."""
