// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Whoever is not let in is named, each once: an operator looks for who asks for too much.
func TestRefusedAreNamed(t *testing.T) {
	var log bytes.Buffer
	g := gated{&Manager{log: slog.New(slog.NewTextHandler(&log, nil))}}
	for range 3 {
		for _, caller := range []string{"spiffe://d/greedy", "spiffe://d/modest"} {
			g.refused(t.Context(), caller, &networkservice.NetworkServiceRequest{}, nserr.Busy.Errorf("too many wait already"))
		}
	}
	for _, caller := range []string{"spiffe://d/greedy", "spiffe://d/modest"} {
		if n := strings.Count(log.String(), "spiffe_id="+caller); n != 1 {
			t.Errorf("%s is named %d times, want once: %s", caller, n, log.String())
		}
	}
}
