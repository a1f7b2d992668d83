// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/nserr"
)

// The demo's workloads: an application with three services, and programs that
// use and measure them. They know nothing of wires, only addresses.
const (
	webPort  = 8080 // HTTP
	sinkPort = 5201 // takes what it is sent and answers how much it was
	echoPort = 7007 // sends back what it is sent
)

func newDemoWorkload(a *app) *cobra.Command {
	c := &cobra.Command{Use: "demo-workload", Short: "Applications of the demo", Hidden: true, RunE: group}
	c.AddCommand(newDemoServe(a), newDemoGet(a), newDemoThroughput(a), newDemoRTT(a))
	return c
}

// newDemoServe is the application behind an endpoint.
func newDemoServe(a *app) *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "serve",
		Short: "Serve HTTP, a sink and an echo",
		Args:  cobra.NoArgs,
	}, &struct{}{}, func(ctx context.Context, _ []string) error {
		var listeners []net.Listener
		for _, port := range []int{webPort, sinkPort, echoPort} {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return nserr.AddressInUse.Errorf("%w", err)
			}
			defer l.Close()
			listeners = append(listeners, l)
		}
		fmt.Fprintln(a.out, "ready")
		stop := context.AfterFunc(ctx, func() {
			for _, l := range listeners {
				_ = l.Close()
			}
		})
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { _ = http.Serve(listeners[0], http.HandlerFunc(sendText)) })
		wg.Go(func() { serveEach(ctx, listeners[1], sink) })
		wg.Go(func() { serveEach(ctx, listeners[2], func(c net.Conn) { _, _ = io.Copy(c, c) }) })
		wg.Wait()
		return nil
	})
}

// serveEach calls serve for each connection, until ctx ends.
func serveEach(ctx context.Context, l net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			serve(c)
		})
	}
}

// sendText answers GET /?text=T&times=N with T, N times, and then its SHA-256
// in a trailer.
func sendText(w http.ResponseWriter, r *http.Request) {
	line := []byte(r.FormValue("text") + "\n")
	times, err := strconv.Atoi(r.FormValue("times"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	const trailer = "Sha256"
	w.Header().Set("Trailer", trailer)
	sum := sha256.New()
	out := bufio.NewWriterSize(w, 64<<10)
	for range times {
		_, _ = sum.Write(line)
		if _, err := out.Write(line); err != nil {
			return
		}
	}
	if out.Flush() == nil {
		w.Header().Set(trailer, hexSum(sum))
	}
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// sink reads until the other side has sent all and answers how many bytes.
func sink(c net.Conn) {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
	if err == nil {
		_ = binary.Write(c, binary.BigEndian, n)
	}
}

// measured is what a measuring command prints, as JSON.
type measured struct {
	Bytes   int64         `json:"bytes,omitempty"`
	Elapsed time.Duration `json:"elapsed,omitempty"` // ns
	Median  time.Duration `json:"median,omitempty"`  // ns
	Worst   time.Duration `json:"worst,omitempty"`   // ns; the 99th percentile
	SHA256  string        `json:"sha256,omitempty"`
	Host    string        `json:"host,omitempty"`
}

func (m measured) print(w io.Writer) error { return json.NewEncoder(w).Encode(m) }

// demoTimeout bounds one measurement.
const demoTimeout = 20 * time.Second

// newDemoMeasure is a command that measures something at HOST.
func newDemoMeasure(a *app, name, short string, measure func(ctx context.Context, host string) (measured, error)) *cobra.Command {
	return a.command(&cobra.Command{
		Use:   name + " HOST",
		Short: short,
		Args:  cobra.ExactArgs(1),
	}, &struct{}{}, func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, demoTimeout)
		defer cancel()
		m, err := measure(ctx, args[0])
		if err != nil {
			return err
		}
		return m.print(a.out)
	})
}

func newDemoGet(a *app) *cobra.Command {
	var cfg struct {
		Text  string `flag:"text" default:"nsm" help:"line to ask for"`
		Times int    `flag:"times" default:"100000" help:"how often"`
	}
	return a.command(&cobra.Command{
		Use:   "http-get HOST",
		Short: "Get a text over HTTP and check it",
		Args:  cobra.ExactArgs(1),
	}, &cfg, func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, demoTimeout)
		defer cancel()
		url := fmt.Sprintf("http://%s/?text=%s&times=%d", net.JoinHostPort(args[0], strconv.Itoa(webPort)), cfg.Text, cfg.Times)
		m, err := httpGet(ctx, url, int64(cfg.Times)*int64(len(cfg.Text)+1))
		if err != nil {
			return err
		}
		return m.print(a.out)
	})
}

// httpGet reads want bytes from url and compares them with their checksum.
func httpGet(ctx context.Context, url string, want int64) (m measured, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return m, err
	}
	start := time.Now()
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return m, err
	}
	defer reply.Body.Close()
	sum := sha256.New()
	if m.Bytes, err = io.Copy(sum, reply.Body); err != nil {
		return m, err
	}
	m.Elapsed, m.SHA256, m.Host = time.Since(start), hexSum(sum), r.URL.Hostname()
	switch {
	case reply.StatusCode != http.StatusOK:
		return m, fmt.Errorf("%s: %s", url, reply.Status)
	case m.Bytes != want:
		return m, fmt.Errorf("%s: %d bytes instead of %d", url, m.Bytes, want)
	case m.SHA256 != reply.Trailer.Get("Sha256"):
		return m, errors.New("what has arrived is not what was sent")
	}
	return m, nil
}

func dialWorkload(ctx context.Context, host string, port int) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(port)))
	if err == nil {
		deadline, _ := ctx.Deadline()
		err = c.SetDeadline(deadline)
	}
	return c, err
}

func newDemoThroughput(a *app) *cobra.Command {
	return newDemoMeasure(a, "throughput", "Send for a second over one TCP connection", func(ctx context.Context, host string) (m measured, err error) {
		c, err := dialWorkload(ctx, host, sinkPort)
		if err != nil {
			return m, err
		}
		defer c.Close()
		data := make([]byte, 256<<10)
		start := time.Now()
		for time.Since(start) < time.Second {
			if _, err := c.Write(data); err != nil {
				return m, err
			}
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return m, err
		}
		err = binary.Read(c, binary.BigEndian, &m.Bytes) // all of it has arrived
		m.Elapsed, m.Host = time.Since(start), host
		return m, err
	})
}

func newDemoRTT(a *app) *cobra.Command {
	return newDemoMeasure(a, "rtt", "Send a byte there and back, a thousand times", func(ctx context.Context, host string) (m measured, err error) {
		c, err := dialWorkload(ctx, host, echoPort)
		if err != nil {
			return m, err
		}
		defer c.Close()
		times := make([]time.Duration, 0, 1000)
		one := []byte{1}
		for range cap(times) {
			start := time.Now()
			if _, err := c.Write(one); err != nil {
				return m, err
			}
			if _, err := io.ReadFull(c, one); err != nil {
				return m, err
			}
			times = append(times, time.Since(start))
		}
		slices.Sort(times)
		return measured{Host: host, Median: times[len(times)/2], Worst: times[len(times)*99/100]}, nil
	})
}
