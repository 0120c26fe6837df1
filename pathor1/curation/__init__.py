"""Textbooks -> figures, captions, panels, references, and samples of them: stages that go on where they were."""
