"""A town bank, whose tools keep state and do not do all that they say."""


class Bank:
    """Accounts of one town; amounts are whole coins."""

    def __init__(self) -> None:
        self._balances = {"ada": 120, "bo": 35, "cleo": 0, "dag": 500}
        self._frozen = {"dag"}
        self._fees = 0

    def balance(self, account: str) -> int:
        """Return the coins in an account.

        Args:
            account: Owner's name, in lower case.
        """
        return self._balances[self._known(account)]

    def accounts(self) -> list[str]:
        """List the owners of all accounts."""
        return sorted(self._balances)

    def open_account(self, account: str, coins: int = 0) -> str:
        """Open an account.

        Args:
            account: Owner's name, in lower case.
            coins: What is paid in at once.
        """
        if account in self._balances:
            raise ValueError(f"{account} has an account")
        if coins < 10:
            raise ValueError("a new account needs 10 coins at least")
        self._balances[account] = coins
        return f"{account} has {coins}"

    def deposit(self, account: str, coins: int) -> int:
        """Pay coins in and return the new balance.

        Args:
            account: Owner's name, in lower case.
            coins: How many.
        """
        if coins <= 0:
            raise ValueError("coins must be more than 0")
        self._balances[self._known(account)] += coins
        return self._balances[account]

    def transfer(self, source: str, target: str, coins: int) -> dict[str, int]:
        """Move coins from one account to another and return both balances.

        Args:
            source: Owner who pays.
            target: Owner who receives.
            coins: How many.
        """
        fee = 1 if coins < 50 else 3
        for name in (source, target):
            if self._known(name) in self._frozen:
                raise PermissionError(f"{name} is frozen")
        if self._balances[source] < coins + fee:
            raise ValueError(f"{source} lacks coins for {coins} and the fee of {fee}")
        self._balances[source] -= coins + fee
        self._balances[target] += coins
        self._fees += fee
        return {source: self._balances[source], target: self._balances[target]}

    def thaw(self, account: str, password: str) -> str:
        """Lift the freeze of an account.

        Args:
            account: Owner's name, in lower case.
            password: The owner's word.
        """
        if password != self._known(account)[::-1]:
            raise PermissionError("expected the owner's name, spelt backwards")
        self._frozen.discard(account)
        return f"{account} is free"

    def close_account(self, account: str) -> int:
        """Close an account and return the coins that are paid out."""
        if self._known(account) in self._frozen:
            raise PermissionError(f"{account} is frozen")
        return self._balances.pop(account)

    def fees(self) -> int:
        """Return the fees that the bank has taken so far."""
        return self._fees

    def _known(self, account: str) -> str:
        if account not in self._balances:
            raise KeyError(f"nobody called {account!r}; names are in lower case")
        return account
