"""A whole deployment in one thread: workers, schedulers, clients, a seed that decides all that happens."""
