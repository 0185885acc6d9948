"""Kinds of question that need a join of two, three or four tables.

The aliases are the same throughout: c customers, p products, o orders, i items, pay payments, r reviews.
"""

from tunesmith.demo.kind import Kind

_ONE_HOP = (
    Kind(
        "orders_of_customer",
        "SELECT o.id, o.date FROM orders o JOIN customers c ON o.customer_id = c.id WHERE c.name = '{customer}'",
        train=(
            "Which orders did {customer} place, and when?",
            "List id and date of the orders of {customer}.",
            "Show all orders by {customer} with their dates.",
            "Give me the id and date of every order placed by {customer}.",
            "What has {customer} ordered so far? Return order ids and dates.",
        ),
        test=("For {customer}, look up each order id together with its date.",),
    ),
    Kind(
        "orders_from_city",
        "SELECT COUNT(*) FROM orders o JOIN customers c ON o.customer_id = c.id "
        "WHERE c.city = '{city}' AND o.status = '{status}'",
        train=(
            "How many orders of customers from {city} are {status}?",
            "Count the {status} orders from {city}.",
            "What is the number of {status} orders by customers in {city}?",
            "How many {status} orders did customers living in {city} place?",
            "Tell me how many orders that came from {city} are {status}.",
        ),
        test=("Customers in {city}: how many of their orders have the status {status}?",),
    ),
    Kind(
        "products_in_order",
        "SELECT p.name, i.quantity FROM items i JOIN products p ON i.product_id = p.id WHERE i.order_id = {order}",
        train=(
            "Which products are in order {order}, and how many of each?",
            "List product name and quantity for order {order}.",
            "What was bought in order {order}? Show names and quantities.",
            "Show the items of order {order} with product name and quantity.",
            "Open order {order} and give me each product with its quantity.",
        ),
        test=("What products, in what quantity, does order {order} contain?",),
    ),
    Kind(
        "units_of_product",
        "SELECT SUM(i.quantity) FROM items i JOIN products p ON i.product_id = p.id WHERE p.name = '{product}'",
        train=(
            "How many units of {product} were sold?",
            "What is the total quantity ordered of {product}?",
            "Sum the quantities of {product} over all orders.",
            "How many pieces of {product} have been ordered in total?",
            "Total up how often {product} was sold, counting quantities.",
        ),
        test=("Over all orders, what quantity of {product} did we sell?",),
    ),
    Kind(
        "products_with_stars",
        "SELECT DISTINCT p.name FROM products p JOIN reviews r ON r.product_id = p.id "
        "WHERE p.category = '{category}' AND r.stars = {stars}",
        train=(
            "Which products in {category} have a {stars}-star review?",
            "List the {category} products with any {stars}-star rating.",
            "Show products of the category {category} that got a {stars}-star review at least once.",
            "What {category} products were rated {stars} out of 5 by someone?",
            "Name all products from {category} that someone gave {stars} stars.",
        ),
        test=("In {category}, what has at least one review of {stars} stars?",),
    ),
    Kind(
        "orders_per_customer",
        "SELECT c.name, COUNT(*) FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id",
        train=(
            "How many orders did each customer from {city} place?",
            "Count the orders per customer in {city}.",
            "Show the customers from {city} who ordered, with their number of orders.",
            "For every customer in {city} with orders, give name and order count.",
            "Customer by customer, how many orders came out of {city}?",
        ),
        test=("List who ordered from {city} and how many orders each of them made.",),
    ),
    Kind(
        "frequent_customers",
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id HAVING COUNT(*) > {count}",
        train=(
            "Which customers from {city} placed more than {count} orders?",
            "List the customers in {city} with more than {count} orders.",
            "Who in {city} has ordered more than {count} times?",
            "Show customers living in {city} whose number of orders is above {count}.",
            "Name the people from {city} behind more than {count} orders each.",
        ),
        test=("Looking at {city}, which customers ordered over {count} times?",),
    ),
    Kind(
        "best_sellers",
        "SELECT p.name FROM products p JOIN items i ON i.product_id = p.id "
        "WHERE p.category = '{category}' GROUP BY p.id ORDER BY SUM(i.quantity) DESC LIMIT {top}",
        train=(
            "What are the {top} best-selling products in {category} by quantity?",
            "List the {top} products of {category} with the highest quantity sold.",
            "Which {top} {category} products sold the most units?",
            "Show the top {top} sellers in {category} by units sold.",
            "Rank {category} by units sold and give the first {top} products.",
        ),
        test=("Name the {top} {category} products of which we sold the largest quantity.",),
    ),
)

_MORE_HOPS = (
    Kind(
        "revenue_of_category",
        "SELECT SUM(i.quantity * p.price) FROM orders o JOIN items i ON i.order_id = o.id "
        "JOIN products p ON i.product_id = p.id WHERE p.category = '{category}' AND o.date LIKE '{year}%'",
        train=(
            "What was the revenue of {category} in {year}?",
            "How much money did {category} products make in {year}?",
            "Compute quantity times price over all {category} items ordered in {year}.",
            "Give me the total sales value of {category} for {year}.",
            "In {year}, what sum did we turn over with {category}?",
        ),
        test=("Tell me the turnover from {category} products ordered in {year}.",),
    ),
    Kind(
        "top_payers",
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "JOIN payments pay ON pay.order_id = o.id WHERE c.city = '{city}' "
        "GROUP BY c.id ORDER BY SUM(pay.amount) DESC LIMIT {top}",
        train=(
            "Which {top} customers from {city} paid the most in total?",
            "List the {top} customers in {city} with the highest total payments.",
            "Who are the top {top} customers of {city} by amount paid?",
            "Show the {top} biggest spenders from {city} by total payments.",
            "Rank the customers of {city} by all they have paid and give the first {top}.",
        ),
        test=("Name the {top} people in {city} whose payments add up to the most.",),
    ),
)

KINDS = (*_ONE_HOP, *_MORE_HOPS)
