"""Class-activation maps: which places of the target layer speak for a label, and how a map is judged."""
