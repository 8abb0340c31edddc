"""Pictures with captions in English and Arabic: read, labelled by what their captions say of gender, checked, split by picture."""
