"""What the verbs print on a terminal, and the verbs that are nothing but that: init, doctor, demo."""
