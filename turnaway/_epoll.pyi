"""Types of ext/epoll.pyx; what its names mean stands there."""

from turnaway._board import Board

def run(board: Board, worker: int) -> None: ...
