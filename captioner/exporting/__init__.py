"""Write a model as programs that run without captioner."""
