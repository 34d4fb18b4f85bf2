"""``consisti2v serve`` under load and faults (:mod:`.load`), and beside the library (:mod:`.overhead`)."""
