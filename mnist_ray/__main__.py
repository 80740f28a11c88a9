"""`python -m mnist_ray`: the launcher where its console script is not on the path."""

from mnist_ray.cli import main

if __name__ == "__main__":
    main()
