"""From what is to what is wished: the plan, its execution, and the watch over drift."""
