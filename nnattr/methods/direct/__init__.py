"""What each part writes straight toward the next token."""
