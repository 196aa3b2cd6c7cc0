"""The Modal app and the one call that runs its functions here or there. Nothing else imports modal."""
