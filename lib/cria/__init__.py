"""Cria: Llama 2-Chat, built at a size that trains on a laptop."""

from cria import machine

__version__ = "0.1.0"

machine.settle()
