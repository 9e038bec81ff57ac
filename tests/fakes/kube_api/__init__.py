"""A Kubernetes API server as far as ConfigMaps go, for tests: it shares no code with the product.

What it answers is what a real kube-apiserver 1.20.2 answered; `tests/contract/kube` holds both to it.
"""
