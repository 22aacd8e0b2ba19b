"""A process under measurement: the tests' worker with the benchmark's verbs."""

from tests.process.worker import main

if __name__ == "__main__":
    main("benchmarks.verbs")
