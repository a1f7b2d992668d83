// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxCached bounds the cache. Beyond that each call asks the authority.
const maxCached = 4096

// subject is what the agent knows about a local process: what it asks the
// authority about.
type subject struct {
	uid, gid uint32
	exe      string
}

// cache holds the SVIDs of local processes, in memory only. The zero value is
// ready.
type cache struct {
	mu    sync.Mutex
	svids map[subject]cached
}

type cached struct {
	svid *x509svid.SVID
	got  time.Time
}

func (c cached) notAfter() time.Time { return c.svid.Certificates[0].NotAfter }

// fresh returns an SVID in the first quarter of its life, so that processes
// that are alike share one; nil if there is none. Renewal begins later.
func (c *cache) fresh(of subject, now time.Time) *x509svid.SVID {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.svids[of]
	if !ok || now.Sub(s.got) >= s.notAfter().Sub(s.got)/4 {
		return nil
	}
	return s.svid
}

// valid returns an SVID that has not expired; nil if there is none.
func (c *cache) valid(of subject, now time.Time) *x509svid.SVID {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.svids[of]
	if !ok || !now.Before(s.notAfter()) {
		return nil
	}
	return s.svid
}

func (c *cache) put(of subject, svid *x509svid.SVID, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.svids == nil {
		c.svids = make(map[subject]cached)
	}
	if len(c.svids) >= maxCached {
		for of, s := range c.svids {
			if !now.Before(s.notAfter()) {
				delete(c.svids, of)
			}
		}
	}
	if _, known := c.svids[of]; known || len(c.svids) < maxCached {
		c.svids[of] = cached{svid, now}
	}
}
