"""Work on Ray: sessions, trainer, tuner, and the pool of workers; the only room that imports Ray.

May import report, export, tracking, and every room below them.
"""
