"""`python -m mnist_ray`."""

from mnist_ray.cli.process import main

if __name__ == "__main__":
    main()
