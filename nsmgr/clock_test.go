// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/regpath"
)

func TestRegistryClock(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func(at time.Time) metadata.MD {
		return metadata.Pairs(regpath.ClockKey, at.Format(time.RFC3339Nano))
	}
	until := func(at time.Time) *registry.NetworkServiceEndpoint {
		return &registry.NetworkServiceEndpoint{Name: "db", ExpirationTime: timestamppb.New(at)}
	}
	for name, tt := range map[string]struct {
		header metadata.MD
		got    *registry.NetworkServiceEndpoint
		ahead  time.Duration // that is made of it
	}{
		"the same":                  {clock(now), until(now.Add(time.Minute)), 0},
		"what is borne":             {clock(now.Add(-30 * time.Second)), until(now.Add(30 * time.Second)), 0},
		"two minutes behind":        {clock(now.Add(-2 * time.Minute)), until(now.Add(-time.Minute)), -2 * time.Minute},
		"an hour ahead":             {clock(now.Add(time.Hour)), until(now.Add(time.Hour + time.Minute)), time.Hour},
		"silent, right":             {nil, until(now.Add(time.Minute)), 0},
		"silent, behind":            {nil, until(now.Add(-time.Minute)), -2 * time.Minute},
		"nonsense, behind":          {metadata.Pairs(regpath.ClockKey, "noon"), until(now.Add(-time.Minute)), -2 * time.Minute},
		"silent, nothing to expire": {nil, &registry.NetworkServiceEndpoint{Name: "db"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			c := registryClock{log: slog.New(slog.NewTextHandler(&log, nil))}
			for range 3 {
				c.answered(tt.header, tt.got, now.Add(time.Minute), now.Add(-time.Second), now.Add(time.Second))
			}
			if got := now.Sub(c.here(now)); got != tt.ahead {
				t.Errorf("ahead by %v, want %v", got, tt.ahead)
			}
			if said := strings.Count(log.String(), "level=WARN"); (said == 1) != (tt.ahead != 0) || said > 1 {
				t.Errorf("said:\n%s", log.String())
			}
			if left := query.Expiry(c.translated(tt.got)); tt.ahead != 0 && !left.Equal(now.Add(time.Minute)) {
				t.Errorf("it lasts until %v, want a minute", left)
			}
			c.answered(clock(now), tt.got, now.Add(time.Minute), now, now)
			if again := strings.Contains(log.String(), "agrees"); again != (tt.ahead != 0) {
				t.Errorf("after the clock was set:\n%s", log.String())
			}
		})
	}
}
