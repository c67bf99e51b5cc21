"""Operations with a plain definition each (``reference.py``); an accelerated form must agree with it."""
