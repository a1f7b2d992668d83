// SPDX-License-Identifier: Apache-2.0

// Package route is the manager's choice of a forwarder. It is pure: the rules of
// protocol.md §3.2 as functions over values.
package route

import (
	"slices"

	"github.com/openvwire/nsm/sdk/match"
)

// Forwarders returns the names of the forwarders to try, in order: those whose
// labels the service's matches ask for, as registered, but first the one that
// the path of the connection names, if it is among them.
func Forwarders(matches []match.Match, client match.Labels, all []match.Endpoint, sticky string) []string {
	names := match.Forwarders(matches, client, all)
	if i := slices.Index(names, sticky); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, sticky)
	}
	return names
}
