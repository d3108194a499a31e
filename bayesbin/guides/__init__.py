"""Guides over binary weights."""

from bayesbin.guides.mean_field import AutoSignBernoulli
from bayesbin.guides.nested import AutoNestedSignBernoulli
from bayesbin.guides.relaxed import AutoRelaxedSignBernoulli

__all__ = ["AutoNestedSignBernoulli", "AutoRelaxedSignBernoulli", "AutoSignBernoulli"]
