// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"strings"

	"github.com/openvwire/nsm/sdk/nserr"
)

// ParseGroups reads groups of prefixes in the grammar of NSM_CIDR_PREFIX: a
// list of groups separated by commas, each a bracketed list of prefixes or one
// prefix alone. Spaces are ignored.
//
//	10.0.0.0/24                              one group
//	10.0.0.0/24,fd00::/64                    two groups: dual stack
//	[10.0.0.0/24,10.9.0.0/24],[fd00::/64]    two groups, the first of two prefixes
//
// An empty string has no groups.
func ParseGroups(s string) ([][]netip.Prefix, error) {
	rest := strings.Join(strings.Fields(s), "")
	var groups [][]netip.Prefix
	for more := rest != ""; more; {
		var list string
		if inner, bracketed := strings.CutPrefix(rest, "["); bracketed {
			var closed bool
			if list, rest, closed = strings.Cut(inner, "]"); !closed {
				return nil, nserr.BadFlag.Errorf("address pools %q: '[' without ']'", s)
			}
			if rest, more = strings.CutPrefix(rest, ","); !more && rest != "" {
				return nil, nserr.BadFlag.Errorf("address pools %q: ',' expected before %q", s, rest)
			}
		} else {
			list, rest, more = strings.Cut(rest, ",")
		}
		var group []netip.Prefix
		for item := range strings.SplitSeq(list, ",") {
			prefix, err := netip.ParsePrefix(item)
			if err != nil {
				return nil, nserr.BadFlag.Errorf("address pools %q: %q is not a prefix like 10.0.0.0/24", s, item)
			}
			group = append(group, prefix.Masked())
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// Groups is address pool groups as a setting: its text form is ParseGroups'.
type Groups [][]netip.Prefix

// UnmarshalText is ParseGroups.
func (g *Groups) UnmarshalText(text []byte) (err error) {
	*g, err = ParseGroups(string(text))
	return err
}
