// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Each row is a registration of one name, after the rows before it.
func TestRivals(t *testing.T) {
	const a, b, c = "tcp://10.88.0.2:5001", "tcp://10.88.0.4:5001", "tcp://10.88.0.5:5001"
	type step struct {
		at         time.Duration
		had, comes string
		found      bool
		refused    bool
	}
	for name, steps := range map[string][]step{
		"one that stays": {{0, a, a, false, false}, {20 * time.Second, a, a, false, false}},
		"one that moves": {{0, a, b, false, false}, {20 * time.Second, b, b, false, false}, {80 * time.Second, b, b, false, false}},
		"and moves on":   {{0, a, b, false, false}, {20 * time.Second, b, c, false, false}, {40 * time.Second, c, c, false, false}},
		"and back, later": {
			{0, a, b, false, false}, {20 * time.Second, b, b, false, false}, {61 * time.Second, b, a, false, false},
		},
		"two that run": {
			{0, a, b, false, false}, {10 * time.Second, b, a, true, false}, {20 * time.Second, a, b, false, true},
			{30 * time.Second, a, a, false, false}, {85 * time.Second, a, b, false, true}, // the first has renewed 55 s ago
		},
		"of which the first ends": {
			{0, a, b, false, false}, {10 * time.Second, b, a, true, false}, {20 * time.Second, a, b, false, true},
			{71 * time.Second, a, b, false, false}, {80 * time.Second, b, b, false, false},
		},
		"and a third": {
			{0, a, b, false, false}, {10 * time.Second, b, a, true, false}, {20 * time.Second, a, c, false, false}, {25 * time.Second, c, a, true, false},
			{30 * time.Second, a, c, false, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r rivals
			start := time.Now()
			for i, s := range steps {
				found, err := r.meet("forwarder-b", s.had, s.comes, start.Add(s.at), time.Minute)
				if found != s.found || errors.Is(err, nserr.NameInUse) != s.refused || err != nil && !(strings.Contains(err.Error(), s.had) && strings.Contains(err.Error(), s.comes)) {
					t.Errorf("step %d: found %v, %v; want %v and refused %v", i, found, err, s.found, s.refused)
				}
			}
		})
	}
}
