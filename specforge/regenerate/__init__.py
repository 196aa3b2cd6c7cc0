"""Engines that have the target write every assistant turn anew."""
